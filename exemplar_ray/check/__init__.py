"""Is this network what we think? What it takes labelled images for; whether another preprocessing suits it."""
