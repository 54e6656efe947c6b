"""Figures, overlays, console tables and report pages."""
