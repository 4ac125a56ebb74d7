"""What happens inside."""
