"""What every room may use: errors, files, text, durations, platform, pictures, preprocessing."""
