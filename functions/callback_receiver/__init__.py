"""CartelCRM calls back with the fate of a lead."""
