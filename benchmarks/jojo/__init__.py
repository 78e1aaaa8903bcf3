"""What benchmarks/fine_tuning.py is made of: the new thing, its judge, the questions, the methods."""
