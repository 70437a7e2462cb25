"""One file for each op whose outputs are judged otherwise than by sets that its oracle gives."""
