"""The laboratory: many small trainings, compared in a table, and a scaling law fitted to them."""
