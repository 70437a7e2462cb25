"""GSM8K: questions, prompts, servers, answers and run directories."""
