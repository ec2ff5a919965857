"""Teachers: where the distributions come from that a student is trained towards. One small file a kind."""
