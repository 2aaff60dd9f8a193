"""Real mail servers for tests, each on a free loopback port and gone afterwards."""
