"""What the quickstart has beside the leaderboard it runs on: the teacher that ships here, and a bar over all runs."""
