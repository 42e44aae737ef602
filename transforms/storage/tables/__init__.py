"""Rows as tables: Arrow columns, lines of JSON, CSV for spreadsheets, BigQuery."""
