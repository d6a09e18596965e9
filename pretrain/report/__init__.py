"""The HTML kit of every page that the toolkit writes: one document, one stylesheet, SVG charts."""
