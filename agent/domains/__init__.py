"""What the agent looks after, domain by domain: each plans what is dirty, applies it, and checks it now and then."""
