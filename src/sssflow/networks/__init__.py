"""Students behind one interface: features(x) and head(features)."""
