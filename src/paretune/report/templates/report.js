// The page of a study: draws, sorts and filters the findings that stand in its block of JSON. It computes no statistic, and puts
// every text of the study on the page as text, never as HTML.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const state = {view: data.views[0], chosen: null, sort: null, columns: [], at: 0};
const SHAPES = {
  circle: "M6 1a5 5 0 1 0 .01 0z", square: "M1.5 1.5h9v9h-9z", "triangle-up": "M6 1l5.5 10h-11z",
  diamond: "M6 0l6 6-6 6-6-6z", cross: "M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z", "triangle-down": "M6 11L.5 1h11z",
};
const WIDE_RANGE = 8;  // largest over smallest value from which an axis is logarithmic
const LABELLED = 14;  // points up to which each is named in the chart
const LINE = 15;  // pixels from one label to the next
const ERRORS = 1;  // Vega's level of logging
const WORDS = 700;  // of a text that is compared word by word
const RIGHT = ["exact_match", "accuracy"];  // metrics of an example that is right or wrong
const views = {};  // the charts on the page, by the id of their element

// Elements -------------------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", {value, textContent: text})));
  if (chosen !== undefined && chosen !== null) select.value = chosen;
  select.closest("label").hidden = entries.length < 2;
}

const swatch = (entrant) =>
  draw("svg", {class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true"}, draw("path", {d: SHAPES[entrant.shape], fill: entrant.colour}));

const unique = (values) => [...new Set(values)];
const present = (value) => value !== null && value !== undefined;
const name = (index) => {
  const entrant = data.entrants[index];
  return state.view.is_across ? `${entrant.base} ${entrant.label}` : entrant.label;
};
const is_wide = (values) => Math.min(...values) > 0 && Math.max(...values) > WIDE_RANGE * Math.min(...values);
const better = (measure) => (measure.better ? `${measure.better} is better` : "");

// One variant stands out everywhere ----------------------------------------------------------------------------------------------

function choose(index) {
  state.chosen = state.chosen === index ? null : index;
  for (const view of Object.values(views)) view.signal("chosen", state.chosen).run();
  for (const node of document.querySelectorAll("[data-entrant]")) {
    const is_chosen = Number(node.dataset.entrant) === state.chosen;
    node.classList.toggle("chosen", is_chosen);
    if (node.hasAttribute("aria-pressed")) node.setAttribute("aria-pressed", is_chosen);
  }
}

function show_chips() {
  $("chips").replaceChildren(...state.view.entrants.map((index) => {
    const chip = make("button", {type: "button", "aria-pressed": "false", onclick: () => choose(index)}, swatch(data.entrants[index]), name(index));
    chip.dataset.entrant = index;
    return chip;
  }));
}

// Charts -------------------------------------------------------------------------------------------------------------------------

function show_tip(handler, event, item, value) {
  const tip = $("tip");
  tip.hidden = !value;
  if (!value) return;
  tip.textContent = value;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

async function chart(id, kind, rows, label, change = () => {}) {
  const spec = structuredClone(data.charts[kind]);
  spec.data.values = rows;
  spec.params[0].value = state.chosen;
  change(spec);
  const node = $(id);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `${label}. The table of all variants has the values.`);
  const {view} = await vegaEmbed(node, spec, {ast: true, actions: false, renderer: "svg", tooltip: show_tip, defaultStyle: false, logLevel: ERRORS});
  views[id]?.finalize();
  views[id] = view;
  view.addEventListener("click", (_, item) => present(item?.datum?.entrant) && choose(item.datum.entrant));
  return view;
}

function axis(measure, values) {
  const labels = {
    bytes: "replace(format(datum.value, '~s'), /([kMGT]?)$/, ' $1B')", share: "format(datum.value, '.0%')", count: "format(datum.value, '~s')",
    seconds: "datum.value >= 5400 ? format(datum.value / 3600, '~r') + ' h' : datum.value >= 120 ? format(datum.value / 60, '~r') + ' min' : format(datum.value, '~r') + ' s'",
    ms: "format(datum.value, '~r') + ' ms'",
  };
  return {
    scale: {padding: 18, nice: false, ...(is_wide(values) ? {type: "log"} : {zero: false})},
    axis: {...(labels[measure.unit] ? {labelExpr: labels[measure.unit]} : {}), ...(is_wide(values) ? {values: ticks(values)} : {})},
    title: [measure.label, better(measure)].filter(Boolean).join(", "),
  };
}

// 1, 2 and 5 of every power of ten on a logarithmic axis.
function ticks(values) {
  const [low, high] = [Math.min(...values) / 2, Math.max(...values) * 2];
  const powers = Array.from({length: Math.ceil(Math.log10(high / low)) + 2}, (_, index) => 10 ** (Math.floor(Math.log10(low)) + index));
  return powers.flatMap((power) => [power, 2 * power, 5 * power]).filter((value) => low <= value && value <= high);
}

function tip_of(index, measure) {
  const value = data.values[index][measure];
  const {label} = data.measures[measure];
  return [`${label}: ${value.full}`, value.n, value.verdict && `against the baseline: ${value.verdict} (${value.change})`].filter(Boolean).join("\n");
}

async function scatter(id, x, y, hollow) {
  const indices = state.view.entrants.filter((index) => present(data.values[index][x]?.value) && present(data.values[index][y]?.value));
  const frontier = state.view.headlines.includes(y) ? state.view.frontier[x] : undefined;
  const rows = indices.map((index) => {
    const [across, up] = [data.values[index][x], data.values[index][y]];
    return {
      entrant: index, ...data.entrants[index], label: name(index), x: across.value, x_low: across.low, x_high: across.high,
      y: up.value, y_low: up.low, y_high: up.high, tip: `${name(index)}\n${tip_of(index, y)}\n${tip_of(index, x)}`,
      on_frontier: Boolean(frontier?.includes(index)), is_hollow: hollow ? hollow(index) : Boolean(frontier && !frontier.includes(index)),
    };
  });
  if (!rows.length) { $(id).replaceChildren(make("p", {className: "note", textContent: "No variant has both figures."})); return frontier; }
  const [x_measure, y_measure] = [data.measures[x], data.measures[y]];
  const view = await chart(id, "scatter", rows, `${y_measure.label} against ${x_measure.label}`, (spec) => {
    Object.assign(spec.encoding.x, axis(x_measure, rows.map((row) => row.x)));
    Object.assign(spec.encoding.y, axis(y_measure, rows.map((row) => row.y)));
    if (hollow) spec.layer.shift();
  });
  const named = rows.filter((row) => rows.length <= LABELLED || row.on_frontier || row.is_baseline || row.is_recommended);
  const [to_x, to_y, taken] = [view.scale("x"), view.scale("y"), []];
  for (const row of named.sort((one, other) => to_y(one.y) - to_y(other.y))) {
    const width = 14 + 7 * row.label.length;
    row.to_left = to_x(row.x) + width > view.width() && to_x(row.x) > width;
    const left = to_x(row.x) - (row.to_left ? width : 0);
    let top = to_y(row.y);
    while (taken.some(([at, wide, line]) => left < at + wide && at < left + width && Math.abs(top - line) < LINE)) top += 1;
    taken.push([left, width, top]);
    row.y_label = to_y.invert(top);
  }
  view.data("rows", structuredClone(rows)).run();  // copies: Vega keeps its own
  return frontier;
}

async function show_plot() {
  const [x, y] = [$("x").value, $("y").value];
  if (!x || !y) return;
  const frontier = await scatter("scatter", x, y);
  $("scatter-note").textContent = (frontier
    ? "Filled: on the Pareto frontier, nothing is shown to beat it in both. " : "No frontier is drawn where not every pair was compared. ")
    + "Lines are intervals. Hover for figures; click to make a variant stand out everywhere.";
}

function show_axes() {
  const {ids, x, y} = state.view;
  const judged = ids.filter((id) => data.measures[id].better);
  const entries = (of) => of.map((id) => [id, data.measures[id].label]);
  options($("y"), entries(judged.filter((id) => !data.measures[id].is_cost)), y);
  options($("x"), entries([...judged.filter((id) => data.measures[id].is_cost), ...judged.filter((id) => !data.measures[id].is_cost)]), x);
  $("plot").hidden = !x || !y;
}

function show_curves() {
  const runs = data.curves.filter((run) => state.view.entrants.includes(run.entrant));
  $("of-curves").hidden = !runs.length;
  if (!runs.length) return;
  const [x, y] = [$("curve-x").value, $("curve-y").value];
  for (const side of ["train", "validation"]) {
    const rows = runs.filter((run) => run.side === side && run[y]).flatMap((run) => run[y].map((value, index) => ({
      entrant: run.entrant, run: `${run.entrant}/${run.seed}`, colour: data.entrants[run.entrant].colour, dash: data.entrants[run.entrant].dash,
      x: run[x][index], y: value, tip: `${name(run.entrant)}${run.seed === null ? "" : `, seed ${run.seed}`}`,
    })));
    const is_short = Math.max(...runs.filter((run) => run.side === side).map((run) => run.step.length)) <= 12;
    $(side).closest("figure").hidden = !rows.length;
    if (rows.length) {
      chart(side, "curves", rows, `${side} ${$("curve-y").selectedOptions[0].text} of every run`, (spec) => {
        spec.encoding.x.title = $("curve-x").selectedOptions[0].text;
        spec.encoding.y.title = $("curve-y").selectedOptions[0].text;
        spec.mark.point = is_short;
      });
    }
  }
}

function show_bars() {
  const metric = $("metric").value;
  const rows = data.bars.filter((row) => row.metric === metric && state.view.entrants.includes(row.entrant)).map((row) => ({
    ...row, ...data.entrants[row.entrant], value: row.value, name: name(row.entrant), from_zero: data.metrics[metric].from_zero,
    tip: `${name(row.entrant)}\n${row.part}: ${row.text}\n${row.n}`,
  }));
  if (!rows.length) return;
  chart("bars", "bars", rows, `${data.metrics[metric].label} by task and slice`, (spec) => {
    const is_narrow = $("bars").clientWidth < 500;
    const x = {title: [data.metrics[metric].label, better(data.metrics[metric])].filter(Boolean).join(", "), scale: {zero: rows[0].from_zero}};
    x.axis = {titleAnchor: is_narrow ? "end" : "middle", ...(data.metrics[metric].unit === "share" ? {format: ".0%"} : {})};
    const parts = unique(rows.map((row) => row.part));
    const lines = is_narrow ? Math.max(...parts.map((part) => part.split(" · ").length)) : 1;
    if (is_narrow) {  // a label a line for each of its parts, in the middle beside its rows
      const middle = {condition: {test: "true", expr: "-6.5 * (length(split(datum.value, ' · ')) - 1)"}, value: 0};
      Object.assign(spec.encoding.y.axis, {labelLimit: 130, labelExpr: "split(datum.label, ' · ')", labelFontSize: 11, labelLineHeight: 13, labelOffset: middle});
    }
    for (const layer of spec.layer) Object.assign(layer.encoding.x, x);
    spec.height = Math.max(80, 16 * rows.length, (14 * lines + 6) * parts.length);
  });
}

function show_blocks() {
  const [{dataset}, bases] = [state.view, unique(state.view.entrants.map((index) => data.entrants[index].base))];
  const choices = data.blocks.filter((choice) => choice.dataset === dataset && bases.includes(choice.base));
  $("of-blocks").hidden = !choices.length;
  $("blocks").replaceChildren(...choices.map((choice, index) => make(
    "figure", {}, make("figcaption", {textContent: bases.length > 1 ? `${choice.base}, ${choice.title}` : choice.title}), make("div", {id: `blocks-${index}`, className: "chart"}),
  )));
  choices.forEach((choice, index) => chart(`blocks-${index}`, "blocks", choice.rows.map((row) => ({
    ...row, tip: `without ${row.label}: ${row.text} against the removed`,
  })), choice.title, (spec) => { spec.layer[2].encoding.y.title = "worse than the removed one by"; }));
}

function show_size() {
  const size = "|cost|parameters";
  const {entrants, ids} = state.view;
  const is_shown = ids.includes(size) && state.view.y && entrants.some((index) => data.entrants[index].is_pruned);
  $("of-size").hidden = !is_shown;
  if (is_shown) scatter("size", size, state.view.y, (index) => data.entrants[index].is_pruned);
}

// The table ------------------------------------------------------------------------------------------------------------------------

function line(value, column, baseline) {
  const known = column.flatMap((each) => [each.low, each.high, each.value]).filter(present);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  if (!present(value.low) || !present(value.high) || low === high) return null;
  const to = is_wide(known) ? Math.log : (number) => number;
  const at = (number) => 3 + 64 * (to(number) - to(low)) / (to(high) - to(low));
  const node = draw("svg", {class: "cell-line", width: 70, height: 10, viewBox: "0 0 70 10", "aria-hidden": "true"});
  if (baseline) node.append(draw("path", {d: `M${at(baseline.value)} 0v10`, stroke: "var(--soft)", "stroke-dasharray": "1.5 1.5"}));
  node.append(draw("path", {d: `M${at(value.low)} 5H${at(value.high)}`, stroke: "currentColor", "stroke-width": 2}));
  node.append(draw("circle", {cx: at(value.value), cy: 5, r: 2.6, fill: "currentColor"}));
  return node;
}

function cell(index, id) {
  const value = data.values[index][id];
  if (!value) return make("td", {textContent: "–"});
  const mark = {better: "▲", worse: "▼"}[value.verdict];
  const column = state.view.entrants.map((each) => data.values[each][id]).filter(Boolean);
  const reference = state.view.is_across ? null : state.view.entrants.find((each) => data.entrants[each].is_baseline);
  const node = make("td", {className: mark && !state.view.is_across ? value.verdict : "", title: tip_of(index, id)}, value.text);
  if (mark && !state.view.is_across) node.append(" ", make("span", {role: "img", "aria-label": value.verdict, textContent: mark}));
  const drawn = data.measures[id].is_cost ? null : line(value, column, present(reference) ? data.values[reference][id] : null);
  if (drawn) node.append(drawn, make("span", {className: "heard", textContent: value.full}));
  return node;
}

function show_table() {
  const {view, columns, sort} = state;
  const wanted = $("find").value.trim().toLowerCase();
  const frontier = Object.values(view.frontier);
  $("only").hidden = !frontier.length;
  let rows = view.entrants.filter((index) => `${name(index)} ${data.entrants[index].methods}`.toLowerCase().includes(wanted));
  if ($("frontier").checked && frontier.length) rows = rows.filter((index) => frontier.some((of) => of.includes(index)));
  if (sort) {
    const key = (index) => (sort.by === "name" ? name(index) : data.values[index][sort.by]?.value);
    rows.sort((one, other) => {
      const [first, second] = [key(one), key(other)];
      if (!present(first) || !present(second)) return present(second) - present(first);  // what is missing comes last
      return (first < second ? -1 : first > second ? 1 : 0) * (sort.down ? -1 : 1);
    });
  }
  const head = (by, label, note) => {
    const arrow = sort?.by === by ? (sort.down ? " ↓" : " ↑") : "";
    const button = make("button", {type: "button", onclick: () => {
      state.sort = {by, down: sort?.by === by ? !sort.down : data.measures[by]?.better === "higher"};
      show_table();
      document.querySelector(`#table th[data-by="${CSS.escape(by)}"] button`).focus();
    }}, label + arrow, make("small", {textContent: note}));
    const meaning = data.terms[label] ?? data.terms[label.toLowerCase()];
    if (meaning) button.dataset.tip = meaning;
    const node = make("th", {scope: "col", "aria-sort": arrow ? (sort.down ? "descending" : "ascending") : "none"}, button);
    node.dataset.by = by;
    return node;
  };
  const heads = columns.map((id) => head(id, data.measures[id].column, data.measures[id].of));
  const body = rows.map((index) => {
    const entrant = data.entrants[index];
    const tags = [entrant.is_recommended && "recommended", entrant.is_baseline && "baseline"].filter(Boolean);
    const row = make("tr", {onclick: () => choose(index)}, make(
      "td", {title: entrant.methods}, swatch(entrant), " ", make("button", {type: "button", textContent: name(index), onclick: (event) => { event.stopPropagation(); choose(index); }}),
      ...tags.map((text) => make("span", {className: "tag", textContent: text})),
    ), ...columns.map((id) => cell(index, id)));
    row.dataset.entrant = index;
    row.classList.toggle("chosen", index === state.chosen);
    return row;
  });
  $("table").replaceChildren(
    make("caption", {textContent: `${rows.length} of ${view.entrants.length} variants, ${view.label}`}),
    make("thead", {}, make("tr", {}, head("name", "Variant", ""), ...heads)), make("tbody", {}, ...body),
  );
}

function show_columns() {
  $("columns").replaceChildren(...state.view.ids.map((id) => make("label", {}, make("input", {
    type: "checkbox", checked: state.columns.includes(id), onchange: (event) => {
      state.columns = state.view.ids.filter((each) => (each === id ? event.target.checked : state.columns.includes(each)));
      show_table();
    },
  }), ` ${data.measures[id].label}`)));
}

// Examples -------------------------------------------------------------------------------------------------------------------------

const examples = () => data.examples[state.view.dataset] ?? [];
const made_by = (example, index) => {
  const seeds = example.by[index];
  return seeds && (seeds[picked("seed")] ?? Object.values(seeds)[0]);
};
const picked = (of) => $(`filter-${of}`)?.value ?? "";
const first_metric = (example) => {
  const names = unique(Object.values(example.by).flatMap((seeds) => Object.values(seeds).flatMap((made) => Object.keys(made.scores))));
  return names.find((metric) => data.metrics[metric]?.better) ?? names[0];
};

function disagree(example) {
  const made = state.view.entrants.map((index) => made_by(example, index)).filter(Boolean);
  const texts = made.map((each) => each.text?.trim()).filter(present);
  const right = RIGHT.find((metric) => made.every((each) => metric in each.scores));  // a graded score of 0 says nothing of texts
  return unique(right ? made.map((each) => each.scores[right]) : texts).length > 1;
}

function found_examples() {
  const [one, other] = [picked("a"), picked("b")];
  const wanted = picked("words").trim().toLowerCase();
  const fields = Object.keys(state.fields ?? {});
  const shown = examples().filter((example) => state.view.entrants.some((index) => example.by[index])
    && (!picked("task") || example.task === picked("task")) && (!picked("split") || example.split === picked("split"))
    && fields.every((field) => !picked(`field-${field}`) || example.fields[field] === picked(`field-${field}`))
    && (!$("filter-disagree")?.checked || disagree(example))
    && (!wanted || [example.prompt, example.record, example.document, ...example.references, ...state.view.entrants.map((index) => made_by(example, index)?.text)]
      .some((text) => text?.toLowerCase().includes(wanted))));
  if (!$("filter-worst")?.checked) return shown;
  const gap = (example) => {
    const metric = first_metric(example);
    const [first, second] = [made_by(example, one)?.scores[metric], made_by(example, other)?.scores[metric]];
    return present(first) && present(second) ? (first - second) * (data.metrics[metric]?.better === "lower" ? -1 : 1) : Infinity;
  };
  return shown.map((example) => [gap(example), example]).sort(([first], [second]) => first - second).map(([, example]) => example);
}

function show_filters() {
  const all = examples().filter((example) => state.view.entrants.some((index) => example.by[index]));
  $("of-examples").hidden = !all.length;
  if (!all.length) return;
  const update = () => {
    state.at = 0;
    for (const field of Object.keys(state.fields)) {  // what no example of the task has filters nothing
      const node = $(`filter-field-${field}`);
      node.closest("label").hidden = node.length < 3 || !all.some((example) => (!picked("task") || example.task === picked("task")) && field in example.fields);
      if (node.closest("label").hidden) node.value = "";
    }
    show_example();
  };
  const select = (of, label, entries, chosen) => {
    const node = make("select", {id: `filter-${of}`, onchange: update});
    const wrapped = make("label", {}, `${label} `, node);
    options(node, entries, chosen);
    return wrapped;
  };
  const check = (of, ...text) => make("label", {}, make("input", {type: "checkbox", id: `filter-${of}`, onchange: update}), " ", ...text);
  const any = (values) => [["", "all"], ...values.map((value) => [value, value])];
  const tasks = unique(all.map((example) => example.task));
  const wrote = (example) => Object.values(example.by).some((seeds) => Object.values(seeds).some((made) => present(made.text)));
  const first = all.find(wrote)?.task ?? tasks[0];
  state.fields = {};
  for (const example of all) for (const [field, value] of Object.entries(example.fields)) (state.fields[field] ??= new Set()).add(value);
  const seeds = unique(all.flatMap((example) => Object.values(example.by).flatMap((by) => Object.keys(by)))).filter(Boolean);
  const entrants = state.view.entrants.map((index) => [index, name(index)]);
  const baseline = state.view.entrants.find((index) => data.entrants[index].is_baseline) ?? state.view.entrants[0];
  const rival = state.view.entrants.find((index) => data.entrants[index].is_recommended && index !== baseline) ?? state.view.entrants.findLast((index) => index !== baseline) ?? baseline;
  $("filters").replaceChildren(
    select("task", "Task", any(tasks), first), select("split", "Split", any(unique(all.map((example) => example.split)).filter(Boolean))),
    ...Object.entries(state.fields).map(([field, values]) => select(`field-${field}`, field, any([...values].sort()))),
    select("seed", "Seed", seeds.map((seed) => [seed, seed])),
    make("label", {}, "Find ", make("input", {id: "filter-words", type: "search", oninput: update})),
    check("disagree", "variants disagree"), check("worst", "worst first for A against B"),
    select("a", "A", entrants, rival), select("b", "B", [...entrants, ["reference", "the reference"]], baseline),
  );
  update();
}

// What of two texts is not in the longest sequence of words that both have.
function differences(one, other) {
  const [first, second] = [one, other].map((text) => text.split(/(\s+)/).filter(Boolean));
  if (Math.max(first.length, second.length) > 2 * WORDS) return [null, null];
  const lengths = Array.from({length: first.length + 1}, () => new Uint16Array(second.length + 1));
  for (let i = first.length - 1; i >= 0; i--) {
    for (let j = second.length - 1; j >= 0; j--) {
      lengths[i][j] = first[i] === second[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const marked = [[], []];
  let [i, j] = [0, 0];
  while (i < first.length || j < second.length) {
    if (i < first.length && j < second.length && first[i] === second[j]) {
      marked[0].push([first[i++], false]);
      marked[1].push([second[j++], false]);
    } else if (j >= second.length || (i < first.length && lengths[i + 1][j] >= lengths[i][j + 1])) marked[0].push([first[i++], true]);
    else marked[1].push([second[j++], true]);
  }
  return marked;
}

function written(text, marked, tag) {
  const node = make("pre", {className: text.length > 900 ? "long" : "", tabIndex: text.length > 900 ? 0 : -1});
  if (!marked?.length) node.textContent = text.trimStart() || "(nothing)";
  else for (const [word, is_apart] of marked) node.append(is_apart && word.trim() ? make(tag, {textContent: word}) : word);
  return node;
}

function show_example() {
  const shown = found_examples();
  state.at = Math.max(0, Math.min(state.at, shown.length - 1));
  $("position").textContent = shown.length ? `${state.at + 1} of ${shown.length}` : "none";
  const example = shown[state.at];
  if (!example) { $("example").replaceChildren(make("p", {className: "note", textContent: "No example passes these filters."})); return; }
  const [one, other] = [picked("a"), picked("b")];
  const text_of = (key) => (key === "reference" ? example.references[0] : made_by(example, key)?.text)?.trimStart();
  const marked = present(text_of(one)) && present(text_of(other)) && one !== other ? differences(text_of(one), text_of(other)) : [null, null];
  const marks = (key) => (key === one ? [marked[0], "ins"] : key === other ? [marked[1], "del"] : [null, "ins"]);
  const where = [example.task, example.split, ...Object.entries(example.fields).map(([field, value]) => `${field}: ${value}`)].filter(Boolean).join(" · ");
  const cards = state.view.entrants.filter((index) => made_by(example, index)).map((index) => {
    const made = made_by(example, index);
    const scores = Object.entries(made.scores).map(([metric, value]) => {
      const text = !present(value) ? "–" : Number.isInteger(value) ? value : Number(value.toPrecision(3));
      return `${data.metrics[metric]?.label ?? metric} ${text}`;
    });
    const notes = [made.stop === "max_new_tokens" && "cut at the limit", made.unsafe && "unsafe"].filter(Boolean);
    const card = make("div", {className: index === state.chosen ? "chosen" : ""}, make("h4", {}, swatch(data.entrants[index]), ` ${name(index)}`,
      ...[String(index) === one && "A", String(index) === other && "B", ...notes].filter(Boolean).map((text) => make("span", {className: "tag", textContent: text}))),
      present(made.text) ? written(made.text, ...marks(String(index))) : null, make("p", {className: "scores", textContent: scores.join(" · ")}));
    card.dataset.entrant = index;
    return card;
  });
  const reference = example.references.map((text, index) => make("div", {}, make("h4", {textContent: index ? "also right" : "Reference"}), written(text, ...(index ? [null, "del"] : marks("reference")))));
  $("example").replaceChildren(...[
    make("h3", {textContent: example.document === example.example ? `No. ${example.example}` : example.document}), make("p", {className: "note", textContent: where}),
    example.record && written(example.record, null, "ins"), example.prompt && make("p", {className: "note", textContent: "Prompt"}), example.prompt && written(example.prompt, null, "ins"),
    !example.prompt && !example.record && make("p", {className: "note", textContent: "Nothing was written here: options and texts are scored by their likelihood."}),
    make("div", {className: "texts"}, ...reference, ...cards),
  ].filter(Boolean));
}

function go(by) { state.at += by; show_example(); }

// The page -------------------------------------------------------------------------------------------------------------------------

function show() {
  const {view} = state;
  Object.assign(state, {chosen: null, sort: null, columns: [...view.columns], at: 0});
  const measured = new Set(data.bars.filter((row) => view.entrants.includes(row.entrant)).map((row) => row.metric));
  const metrics = Object.keys(data.metrics).filter((metric) => measured.has(metric));
  const parts = (metric) => unique(data.bars.filter((row) => row.metric === metric && view.entrants.includes(row.entrant)).map((row) => row.part)).length;
  options($("metric"), metrics.map((metric) => [metric, data.metrics[metric].label]), metrics.find((metric) => parts(metric) > 2) ?? metrics[0]);
  $("of-bars").hidden = !metrics.length;
  for (const part of [show_chips, show_axes, show_plot, show_table, show_columns, show_curves, show_bars, show_size, show_blocks, show_filters]) part();
}

function set_up() {
  for (const node of document.querySelectorAll(".live")) node.hidden = false;
  options($("view"), data.views.map((view, index) => [index, view.label]));
  $("views").hidden = data.views.length < 2;
  $("view").onchange = (event) => { state.view = data.views[event.target.value]; show(); };
  const has_accuracy = data.curves.some((run) => run.token_accuracy);
  options($("curve-y"), [["loss", "loss, nats per token"], ...(has_accuracy ? [["token_accuracy", "token accuracy"]] : [])]);
  options($("curve-x"), [["step", "steps"], ["tokens", "tokens"], ["seconds", "seconds"], ["epoch", "epochs"]]);
  $("x").onchange = $("y").onchange = show_plot;
  $("curve-x").onchange = $("curve-y").onchange = show_curves;
  $("metric").onchange = show_bars;
  $("find").oninput = $("frontier").onchange = show_table;
  $("previous").onclick = () => go(-1);
  $("next").onclick = () => go(1);
  $("theme").onclick = () => {
    const {dataset} = document.documentElement;
    const is_dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    dataset.theme = is_dark ? "light" : "dark";
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=checkbox]), select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = {j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1}[event.key];
    if (step && !event.target.closest(".wide, pre")) { event.preventDefault(); go(step); }
    if (event.key === "Escape" && state.chosen !== null) choose(state.chosen);
  });
  // The meaning of a term, by pointer, touch and keyboard alike.
  for (const [begin, end] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
    document.addEventListener(begin, (event) => {
      const term = event.target.closest?.("[data-tip]");
      if (!term) return;
      const box = term.getBoundingClientRect();
      show_tip(null, {clientX: box.left - 10, clientY: box.bottom - 8}, null, term.dataset.tip);
    });
    document.addEventListener(end, (event) => { if (event.target.closest?.("[data-tip]")) $("tip").hidden = true; });
  }
  for (const copied of document.querySelectorAll(".copied")) {
    copied.append(make("button", {type: "button", textContent: "Copy", onclick: (event) => {
      navigator.clipboard?.writeText(copied.querySelector("pre").textContent).then(() => { event.target.textContent = "Copied"; });
    }}));
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((node) => { node.open = !node.classList.contains("menu"); }));
}

if (data.views.length) {
  set_up();
  show();
}
})();
