"""What chooses actions: scripted walks and planners."""
