"""The topics, one file each: take one and change it.

A file has a `LESSON`, experiments (plain functions, cached because several claims look at the same runs), the claims
(functions that return what was measured) and one function that draws. A new file in this folder is a new lesson.
"""
