"""Work of several owners: whose turn it is, and who has claimed it. No torch, no Ray."""
