"""Memory banks: what the families that compare a scan's patches with nominal ones share."""
