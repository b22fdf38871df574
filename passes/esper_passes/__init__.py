"""Every rewrite and offline pass that comes with Esper, found through entry points."""
