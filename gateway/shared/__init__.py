"""What several gateways decide together, in Redis: limits, budgets, who is revoked, which engine is out, who asks."""
