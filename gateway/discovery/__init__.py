"""Where engines are found: DNS, Kubernetes, Consul, a file; and who looks there."""
