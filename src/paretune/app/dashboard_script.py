"""What Streamlit runs for every browser, and again whenever something is clicked: the page that is asked for."""

import streamlit as st

from paretune.app import dashboard_pages
from paretune.app.dashboard import markdown
from paretune.errors import ParetuneError


def side_by_side() -> None:
    from paretune.app import dashboard_talk  # with torch, which no other page takes

    dashboard_talk.side_by_side()


PAGES = {
    "Overview": dashboard_pages.overview,
    "Run": dashboard_pages.run,
    "Side by side": side_by_side,
    "Blind rating": dashboard_pages.blind_rating,
    "Examples": dashboard_pages.examples,
    "Cards": dashboard_pages.model_cards,
    "Export": dashboard_pages.export,
}

st.set_page_config(page_title="Paretune", layout="wide")
st.html("<style>.stMainBlockContainer { padding-top: 4.5rem; }</style>")
made = [st.Page(page, title=title, url_path=title.lower().replace(" ", "-")) for title, page in PAGES.items()]
try:
    st.navigation(made, position="top").run()
except ParetuneError as error:
    st.error(markdown(str(error)))
except OSError as error:
    st.error(markdown(f"the store changed while it was read ({error}); load the page again"))
