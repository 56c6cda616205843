"""Train GSMedSeg's network on labelled volumes and synthetic scenes."""
