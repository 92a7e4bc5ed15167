"""Link-level data that others made, as TFRecords, to a dataset of slots."""
