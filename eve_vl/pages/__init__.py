"""Parts of HTML pages: templates, charts, number formats."""
