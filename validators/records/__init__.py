"""What is kept of a judgement: records, their files and their words. No torch, no case."""
