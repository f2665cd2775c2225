"""Results for people: terminal, Markdown dossier, progress. Nothing here computes; it only shows."""
