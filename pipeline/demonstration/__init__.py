"""The demo's data, network and picture."""
