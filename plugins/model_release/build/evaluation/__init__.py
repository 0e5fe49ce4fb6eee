"""How a version answers labelled images, before it gets traffic: images, answers, measures, gates, picture."""
