"""Say the goal in words; diffusion decides."""
