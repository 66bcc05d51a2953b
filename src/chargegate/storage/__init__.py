"""What every engine is built from: group commit, the answer budget, what *unavailable* means, SQL and Lua files."""
