"""Reports: one HTML kit and stylesheet for all pages, SVG charts, number formats, terminal rows and progress bars."""
