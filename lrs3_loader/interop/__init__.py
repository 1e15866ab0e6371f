"""Other people's formats: GeneFace's binarised sets, and archives that carry whole sets from place to place."""
