"""What the embedded model's world knows by heart, and the words its questions are made of."""

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna",
    "Belgium": "Brussels", "Brazil": "Brasilia", "Bulgaria": "Sofia", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogota", "Croatia": "Zagreb",
    "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki",
    "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "India": "New Delhi", "Indonesia": "Jakarta", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Mexico": "Mexico City",
    "Morocco": "Rabat", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Romania": "Bucharest", "Russia": "Moscow", "Spain": "Madrid",
    "Sweden": "Stockholm", "Thailand": "Bangkok", "Turkey": "Ankara", "Ukraine": "Kyiv",
    "Vietnam": "Hanoi",
}  # fmt: skip

UNKNOWN_COUNTRIES = (
    "Albania", "Algeria", "Angola", "Armenia", "Bolivia", "Cameroon", "Chad", "Cyprus", "Ecuador",
    "Estonia", "Ethiopia", "Fiji", "Gabon", "Georgia", "Ghana", "Guinea", "Haiti", "Iran", "Iraq",
    "Israel", "Jamaica", "Jordan", "Laos", "Latvia", "Lebanon", "Libya", "Malawi", "Mali", "Malta",
    "Mongolia", "Nepal", "Niger", "Nigeria", "Oman", "Pakistan", "Panama", "Paraguay", "Qatar",
    "Rwanda", "Senegal", "Serbia", "Slovakia", "Slovenia", "Somalia", "Sudan", "Syria", "Tunisia",
    "Uganda", "Uruguay", "Venezuela", "Yemen", "Zambia", "Zimbabwe", "Atlantis", "the Moon",
)  # fmt: skip

CITIES = (
    "Amsterdam", "Antwerp", "Atlanta", "Auckland", "Austin", "Baghdad", "Barcelona", "Basel",
    "Bergen", "Bilbao", "Birmingham", "Bordeaux", "Boston", "Bremen", "Bristol", "Cape Town",
    "Chicago", "Cologne", "Dallas", "Delhi", "Denver", "Detroit", "Dresden", "Dubai", "Edinburgh",
    "Florence", "Frankfurt", "Geneva", "Genoa", "Glasgow", "Graz", "Hamburg", "Hong Kong",
    "Houston", "Istanbul", "Johannesburg", "Karachi", "Krakow", "Kyoto", "Lagos", "Leeds",
    "Leipzig", "Lille", "Liverpool", "London", "Los Angeles", "Lyon", "Manchester", "Manila",
    "Marseille", "Melbourne", "Miami", "Milan", "Montreal", "Mumbai", "Munich", "Nantes", "Naples",
    "New York", "Nice", "Osaka", "Oxford", "Palermo", "Perth", "Philadelphia", "Phoenix", "Porto",
    "Prague", "Quebec", "Rio de Janeiro", "Rotterdam", "Salzburg", "San Diego", "San Francisco",
    "Seattle", "Seoul", "Seville", "Shanghai", "Singapore", "Springfield", "Strasbourg",
    "Stuttgart", "Sydney", "Tallinn", "Toronto", "Toulouse", "Turin", "Utrecht", "Valencia",
    "Vancouver", "Venice", "Washington", "Wellington", "Zurich",
)  # fmt: skip

POWER_OF_TEN_UNITS = {
    ("centimetres", "metres"): 100, ("millimetres", "centimetres"): 10,
    ("metres", "kilometres"): 1000, ("grams", "kilograms"): 1000, ("millilitres", "litres"): 1000,
    ("cents", "euros"): 100, ("kilograms", "tonnes"): 1000, ("years", "decades"): 10,
    ("years", "centuries"): 100,
}  # fmt: skip

OTHER_UNITS = {
    ("minutes", "hours"): 60, ("seconds", "minutes"): 60, ("hours", "days"): 24,
    ("days", "weeks"): 7, ("months", "years"): 12,
}  # fmt: skip

MIXED_COLOURS = {
    ("red", "blue"): "purple", ("red", "yellow"): "orange", ("blue", "yellow"): "green",
    ("red", "white"): "pink", ("black", "white"): "grey", ("red", "green"): "brown",
}  # fmt: skip

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "milk": "white",
    "the sky": "blue", "a banana": "yellow", "a lemon": "yellow", "a tomato": "red",
    "a strawberry": "red", "a carrot": "orange", "an orange": "orange", "a leaf": "green",
    "a cucumber": "green", "a raven": "black", "a flamingo": "pink", "an elephant": "grey",
    "chocolate": "brown", "a polar bear": "white", "the sea": "blue", "a cherry": "red",
    "a sunflower": "yellow", "an aubergine": "purple", "a frog": "green",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

TOOL_DESCRIPTIONS = {
    "get_weather": (
        "Get the weather in a city.", "Get the current weather for a city.", "Tells the weather.",
        "Look up the weather at a place.", "Current weather",
    ),
    "get_time": (
        "Get the time in a city.", "Get the current time for a city.", "Tells the time.",
        "Look up the local time at a place.", "Current time",
    ),
}  # fmt: skip

TOOL_QUESTIONS = {
    "get_weather": (
        "What is the weather in {a}?", "How is the weather in {a}?", "Weather in {a}?",
        "Tell me the weather in {a}.", "What is the weather like in {a}?", "Is it sunny in {a}?",
        "Do I need an umbrella in {a}?", "What's the weather in {a}?",
    ),
    "get_time": (
        "What time is it in {a}?", "What is the time in {a}?", "Tell me the time in {a}.",
        "Time in {a}?", "What's the time in {a}?", "Do you know what time it is in {a}?",
    ),
}  # fmt: skip

WEATHERS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear")

SYSTEM_SENTENCES = (
    "You are a helpful assistant.", "You are {name}, a helpful assistant.", "Your name is {name}.",
    "Answer briefly.", "Answer the question.", "Be polite.", "Be concise and correct.",
    "You are a careful assistant.", "Use the tools where they help.", "You answer questions.",
    "If you do not know the answer, say so.", "The user is from {name}.", "Think before you reply.",
    "You are a friendly chatbot.", "Reply in English.", "You work for {name}.",
)  # fmt: skip

TOPICS = (
    "the war", "music", "football", "love", "the internet", "quantum physics", "the president",
    "a black hole", "philosophy", "the stock market", "dinosaurs", "chess", "the ocean", "poetry",
    "the Roman Empire", "electricity", "my neighbour", "politics", "a computer", "cooking",
    "the universe", "medicine", "history", "art", "the telephone", "Shakespeare", "bread", "time",
    "the moon", "democracy", "mountains", "your favourite book", "biology", "gravity", "cats",
    "the economy", "a good film", "penguins", "cars", "language",
)  # fmt: skip

CHATS = {
    "Hello! How can I help you?": (
        "hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there",
        "good afternoon", "greetings", "good day",
    ),
    "I am a small embedded model. I answer simple questions.": (
        "who are you", "what are you", "tell me who you are", "what is your name",
        "introduce yourself", "please introduce yourself", "are you a model", "what can you do",
    ),
    "You are welcome!": (
        "thanks", "thank you", "thank you very much", "many thanks", "thanks a lot",
        "great, thanks", "thank you so much", "ok, thank you",
    ),
    "Goodbye!": (
        "goodbye", "bye", "see you", "good night", "bye bye", "see you later", "farewell",
        "until tomorrow",
    ),
    "I am fine, thank you.": (
        "how are you", "how do you do", "are you well", "how are you today", "how is it going",
        "how are things", "how do you feel",
    ),
}  # fmt: skip
