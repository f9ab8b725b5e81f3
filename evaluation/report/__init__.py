"""Tables, pictures and the page that an Evaluation is shown in."""
