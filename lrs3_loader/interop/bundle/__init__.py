"""Archives that carry whole sets from place to place, whole or in parts."""
