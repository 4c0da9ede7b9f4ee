"""The pages of the site, and in `docs.make` what builds it."""
