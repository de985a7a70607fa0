"""`make dist`: what is given away, the same bytes from the same commit. Files in dist/: wheel, chart, image."""
