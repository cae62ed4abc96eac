"""Reports: text, tables, pictures. The only place that imports matplotlib."""
