"""From a RUN to the Hub: what may leave the machine, what must not, the card, the push."""
