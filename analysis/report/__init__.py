"""Reports: what is measured of a run, as one page."""
