"""From the user's DataFrame to checked, packed or collected ratings."""
