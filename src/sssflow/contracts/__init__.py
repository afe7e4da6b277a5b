"""What one stage hands to the next: plain typed data with a schema version and digests."""
