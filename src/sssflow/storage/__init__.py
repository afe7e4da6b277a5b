"""Where bytes live: atomic files, digests, URIs."""
