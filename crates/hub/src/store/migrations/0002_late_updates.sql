-- The round whose samples an update is of: an earlier one than the round that merges it, if it came late.
ALTER TABLE contribution ADD COLUMN of_round INTEGER;
