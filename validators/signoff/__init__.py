"""From records alone to SIGNED, NOT SIGNED or UNTESTED, and the pages that say so. No torch."""
