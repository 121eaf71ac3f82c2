"""What Streamlit runs for every browser, and again whenever something is clicked."""

from paretune.app.dashboard import show

show()
