"""The charts of report.html, Vega-Lite specifications (https://vega.github.io/vega-lite/docs), and the library that draws them.

A specification has no data: the page fills `rows` with values that stand in its findings and sets titles and scales by what
was picked. Colours are CSS variables of `report.css`, so that light, dark and printed pages draw themselves; colour and shape
change together, so that either tells variants apart.
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
COLOURS = 7
"""Of the palette in `report.css`, Okabe and Ito's."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
REPLACED = ("pareto", "curves-", "comparison-", "tasks-", "questions-")
"""Beginnings of the names of the figures whose place a chart takes on the page."""


def look(variant: int, base: int) -> Spec:
    """Colour, shape and dashes of a variant by its place in the study; of the same variant of another base, another shape."""
    return {
        "colour": f"var(--c{variant % COLOURS})",
        "shape": SHAPES[(variant + base) % len(SHAPES)],
        "dash": DASHES[(variant // COLOURS + base) % len(DASHES)],
    }


@functools.cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script of 0.9 MB that holds no `</script`.

    Bundling takes seconds, so the script is kept in the user's cache directory, by version; where that cannot be written it is
    made anew.
    """
    import vl_convert

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paretune"
    file = cache / f"vega-{vl_convert.get_vega_version()}-{version('vl-convert-python')}.js"
    with suppress(OSError):
        return file.read_text(encoding="utf-8")
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("\r\n", "\n")
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as draft:
            draft.write(script)
        Path(draft.name).replace(file)
    return script


_DATA = {"name": "rows", "values": []}
_CHOSEN = {"name": "chosen", "value": None}
"""The variant that was clicked, by its number; the others fade."""
_FADES = {"condition": {"test": "chosen === null || datum.entrant === chosen", "value": 1}, "value": 0.18}
_COLOUR = {"field": "colour", "type": "nominal", "scale": None}
_TIP = {"field": "tip"}
_CONFIG = {
    "aria": False,  # the element that it is drawn into says what it shows
    "mark": {"aria": False},
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--soft)",
        "tickColor": "var(--soft)",
        "labelFontSize": 12,
        "titleFontSize": 12.5,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 220,
        "tickCount": 5,
        "labelOverlap": True,
    },
}


def _chart(content: Mapping[str, Any], height: int) -> Spec:
    return {"data": _DATA, "params": [_CHOSEN], "width": "container", "height": height, "config": _CONFIG, **content}


def _at(field: str, kind: str = "quantitative", **more: Any) -> Spec:
    return {"field": field, "type": kind, **more}


def _interval(channel: str, low: str, high: str, **encoding: Any) -> Spec:
    """A line from one end to the other, where there are both."""
    return {
        "transform": [{"filter": f"isValid(datum.{low}) && isValid(datum.{high})"}],
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {channel: _at(low), f"{channel}2": {"field": high}, "color": _COLOUR, "opacity": _FADES, **encoding},
    }


_PLACE = {"zero": False, "padding": 18}
_SCATTER = _chart(
    {
        "encoding": {"x": _at("x", scale=_PLACE), "y": _at("y", scale=_PLACE)},
        "layer": [
            {
                "transform": [{"filter": "datum.on_frontier"}],
                "mark": {
                    "type": "line",
                    "interpolate": "step-after",
                    "strokeDash": [3, 3],
                    "color": "var(--soft)",
                    "strokeWidth": 1.5,
                },
            },
            _interval("y", "y_low", "y_high"),
            _interval("x", "x_low", "x_high"),
            {
                "mark": {"type": "point", "size": 110, "opacity": 1, "strokeWidth": 2, "cursor": "pointer"},
                "encoding": {
                    "stroke": _COLOUR,
                    "fill": {"condition": {"test": "datum.is_hollow", "value": "var(--paper)"}, **_COLOUR},
                    "shape": {"field": "shape", "type": "nominal", "scale": None},
                    "opacity": _FADES,
                    "tooltip": _TIP,
                },
            },
            {
                "transform": [{"filter": "isValid(datum.y_label)"}],
                "mark": {
                    "type": "text",
                    "align": {"expr": "datum.to_left ? 'right' : 'left'"},
                    "dx": {"expr": "datum.to_left ? -10 : 10"},
                    "fontSize": 12.5,
                    "stroke": "var(--paper)",
                    "strokeWidth": 3,
                    "cursor": "pointer",
                },
                "encoding": {
                    "y": _at("y_label"),
                    "text": {"field": "label"},
                    "color": {"value": "var(--ink)"},
                    "opacity": _FADES,
                    "tooltip": _TIP,
                },
            },
        ],
    },
    height=340,
)
_CURVES = _chart(
    {
        "mark": {"type": "line", "strokeWidth": 2, "point": False, "cursor": "pointer"},
        "encoding": {
            "x": _at("x", scale={"zero": False}),
            "y": _at("y", scale={"zero": False}),
            "detail": [{"field": "run"}],
            "color": _COLOUR,
            "strokeDash": {"field": "dash", "type": "nominal", "scale": None},
            "opacity": _FADES,
            "tooltip": _TIP,
        },
    },
    height=260,
)
_ROW = {
    "y": _at(
        "part", "nominal", sort=None, title=None, axis={"domain": False, "ticks": False, "labelPadding": 8, "labelLimit": 300}
    ),
    "yOffset": _at("name", "nominal", sort=None),
}
_BARS = _chart(
    {
        "encoding": _ROW,
        "layer": [
            {
                "transform": [{"filter": "datum.from_zero"}],
                "mark": {"type": "bar", "fillOpacity": 0.4, "cursor": "pointer"},
                "encoding": {"x": _at("value"), "color": _COLOUR, "opacity": _FADES, "tooltip": _TIP},
            },
            _interval("x", "low", "high"),
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "cursor": "pointer"},
                "encoding": {
                    "x": _at("value"),
                    "color": _COLOUR,
                    "shape": {"field": "shape", "type": "nominal", "scale": None},
                    "opacity": _FADES,
                    "tooltip": _TIP,
                },
            },
        ],
    },
    height=200,
)
_REMOVED = {"condition": {"test": "datum.is_removed", "value": "var(--c1)"}, "value": "var(--c0)"}
_BLOCKS = _chart(
    {
        "encoding": {"x": _at("label", "nominal", sort=None, title="removed blocks", axis={"labelAngle": 0})},
        "layer": [
            {
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--soft)"},
                "encoding": {"y": {"datum": 0}, "x": None},
            },
            _interval("y", "low", "high", color=_REMOVED, opacity={"value": 1}),
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"y": _at("value"), "color": _REMOVED, "tooltip": _TIP},
            },
        ],
    },
    height=220,
)
SPECS = {"scatter": _SCATTER, "curves": _CURVES, "bars": _BARS, "blocks": _BLOCKS}
"""By what the page calls them."""
