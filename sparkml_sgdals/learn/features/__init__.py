"""What features of users and items say of them, learned (no Spark)."""
