"""M3DM: memory banks of RGB, point and fused patches. README.md has the maths and the data flow."""
