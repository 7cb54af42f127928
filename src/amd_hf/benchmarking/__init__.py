"""Speed of AMD beside the published computation and beside the machine's own limits."""
