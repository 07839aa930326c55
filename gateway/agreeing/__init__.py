"""What the processes of one gateway agree on, over their bus: metrics, engines' states, operators' words, alerts."""
