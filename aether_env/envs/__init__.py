"""The environment: what an agent may do (actions), what it is for (tasks), where a dream begins (starts), the Env."""
